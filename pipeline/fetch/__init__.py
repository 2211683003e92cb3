"""Images by URI: from web servers, object stores and paths, with limits on each host, on time, bytes and addresses."""
