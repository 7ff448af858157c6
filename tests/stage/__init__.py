"""What the tests play on: real Redis servers, real services, real clients."""
