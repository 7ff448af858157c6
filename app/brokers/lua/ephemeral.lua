-- Tell the subscribers and keep nothing. A script, so that the message carries the same clock as all others.
-- KEYS none
-- ARGV 1 Pub/Sub channel, 2 opened envelope, 3 payload, 4 nonce (nothing is settled here)
-- Returns how many connections of this server were told.

local time = redis.call('TIME')
local stamp = time[1] .. string.format('%03d', math.floor(time[2] / 1000))
return redis.call('PUBLISH', ARGV[1], '- ' .. ARGV[2] .. '"t":' .. stamp .. '}\n' .. ARGV[3])
