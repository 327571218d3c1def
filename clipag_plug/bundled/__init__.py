"""Files of the bundled models: weights, cards, vocabulary, sample photographs."""
