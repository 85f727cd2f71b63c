"""What finds photos by their descriptors: matrix products, FAISS, Qdrant; `retrieval.index` builds and opens them."""
