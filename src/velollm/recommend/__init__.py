"""Which model and which number format suit a machine, how fast they would be, and how to get them."""
