"""The model as training sees it: modules over block.py, rows of packed documents, losses of their tokens."""
