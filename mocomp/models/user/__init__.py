"""The front end for modules that nobody has described: a user's own `nn.Module`, in memory, named by its code, or exported."""
