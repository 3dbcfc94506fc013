"""The load: locust users that hold whole SMTP sessions over aiosmtplib, in a process of their own."""
