"""The operator's page: figures of now, as HTML that needs no script; one renews them."""
