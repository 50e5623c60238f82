"""Adaptation on the robot: notice that the world changed, correct the network, never make it worse.

The weights stay frozen; what is learnt is an `adapter` of a few kilobytes.
"""
