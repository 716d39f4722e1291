"""A deep model in the time of a shallow one: layers that are alike are traced three times, and the rest is stamped.

`alike.py` says which layers of a model are, `skipped.py` leaves layers out of a trace, `stamped.py` puts them back into the
graph. Whatever does not fit is found out on the way, and the model is then traced whole.
"""
