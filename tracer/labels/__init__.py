"""What a label, a slot, a value and a flow are, and how labels merge."""
