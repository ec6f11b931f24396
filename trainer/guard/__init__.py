"""What watches the numbers of training: anomalies, replicas that differ, records of incidents."""
