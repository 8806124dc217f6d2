"""The wire between edge and cloud: frames, their columns, their topics, and the MQTT session that carries them."""
