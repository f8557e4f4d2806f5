"""The methods: one prediction, and what each method makes of it."""
