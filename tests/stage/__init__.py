"""A stage on which tests play the cloud: machines with real addresses, real sshd's and what their user data says.

`tests.stage.stage.Stage` starts and ends machines.  What acts as a provider's API (moto for EC2, servers of our own for Linode and
OpenStack) tells it which.
"""
