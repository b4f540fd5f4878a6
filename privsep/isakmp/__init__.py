"""ISAKMP payloads as values, for whoever composes or reads them: SA with its proposals, ID, Notification, Delete."""
