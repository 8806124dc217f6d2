"""Forebay and Telegraf under `kill -9`, on the same load: `./task bench peers`."""
