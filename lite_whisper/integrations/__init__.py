"""Integrations with other libraries; nothing is imported here, since each module requires its library."""
