"""From a trained network to class maps: test protocols and `Segmenter`."""
