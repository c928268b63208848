"""What is scaled: stage tables, layers and blocks with their cost twins, and the network built from them."""
