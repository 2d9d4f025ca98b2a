"""Which candidate to fine-tune: loss tables, Algorithm 1, every selector behind one signature."""
