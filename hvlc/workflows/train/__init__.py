"""Training for a user's model: the labels by the model itself, the network, and whether it is accepted."""
