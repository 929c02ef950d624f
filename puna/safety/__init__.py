"""Safety: what guard models say of texts. Pure: it asks no model itself."""
