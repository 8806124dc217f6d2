"""One driver, one codec, one filter and one sink that are not Forebay's own."""
