"""Speed beside the alternatives: processes of one subject each that take turns, and the roofline of the machine they run on."""
