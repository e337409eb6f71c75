"""What a network costs, by formula and by measurement."""
