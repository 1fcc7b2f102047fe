"""How robust a classifier is on labelled images: what is proved, what is broken, what is open."""
