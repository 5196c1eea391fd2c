"""Made-up runs in the layout of the real run logs; `generate.py` writes them."""
