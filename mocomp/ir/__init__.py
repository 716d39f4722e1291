"""The program between front ends and targets: its graph, the ops it adds, what is legal when, how it is edited."""
