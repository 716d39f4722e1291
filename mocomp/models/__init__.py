"""Front ends: from what a user has to a `Program`."""
