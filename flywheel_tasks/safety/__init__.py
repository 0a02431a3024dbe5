"""Safety classifiers behind one interface: word lists, a local model, an endpoint. What fails, fails closed."""
