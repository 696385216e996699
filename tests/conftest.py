from absl import flags

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags
