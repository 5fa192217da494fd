"""The task that an agent sees, and the loop that carries out what it decides."""
