"""The ingester: a stateless pipe from the broker to the sink, which receipts what the sink has stored."""
