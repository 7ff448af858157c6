-- The revocations, if they have changed.
-- KEYS 1 zset of revocations: name by end (ms)   KEYS 2 revision   ARGV 1 revision that the caller knows ("-1": none)
-- Returns nil where the caller is up to date, else {revision, now (ms), {name, end, ...}}
local server, refusal = reign()
if not server then return refusal end
local revision = redis.call('GET', KEYS[2]) or '0'
if revision == ARGV[1] then return false end
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
return {revision, now, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf', 'WITHSCORES')}
