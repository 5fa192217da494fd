"""How fast networks are on this machine, and the memory that they take."""
