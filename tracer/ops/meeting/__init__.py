"""What two operands are to each other where they meet, and what comes of it."""
