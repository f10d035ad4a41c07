"""Where the rooms meet: building, evaluating, and the demonstration."""
