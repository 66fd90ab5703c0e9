"""The sampling loop: states, what a rule sees and does, and the queue."""
