"""From images to descriptors on disk, an index, ranked lists and pages that show them."""
