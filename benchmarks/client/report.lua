-- What wrk found, as one line of JSON after a mark that nothing else prints.
-- It has no function of requests or responses: those would slow wrk down.

done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'result {"requests":%d,"p50_us":%d,"p99_us":%d,"errors":' ..
    '{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
    summary.requests, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
