"""What a token costs and earns: hardware, training, market prices, margins, experiments. Pure: it runs no
model, opens no connection, and every figure that is not computed stands in `data/` with its source and date.
"""
