"""From a program to the formats that targets share."""
