"""Photos as they come -> tables: GLDv2, a folder per landmark, lists, Revisited Oxford and Paris."""
