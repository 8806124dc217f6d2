"""The edge daemon: reads sensors, finds what is abnormal, keeps custody until the cloud has answered."""
