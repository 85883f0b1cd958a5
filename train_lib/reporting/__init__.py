"""Pages and pictures of what other rooms found, each page one HTML file that needs no other.

Functions here read workdirs or take plain values; they train nothing and decide nothing.
"""
