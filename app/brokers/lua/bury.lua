-- Declare an incarnation dead, once and for all: from then on its beats are refused and its members may be removed.
-- KEYS 1 zset of tombstones, 2 its lease, 3 reign, 4 who clears up after it
-- ARGV 1 incarnation, 2 who asks, 3 ms for which the one who asks has this to itself
-- Returns ALIVE, WAIT (after a failover or a restart leases lapse that are only not renewed yet), TAKEN or DEAD

local CALM = 10000 -- ms of a reign in which nobody is buried

local server, refusal = reign()
if not server then return refusal end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'ALIVE' end
local now = clock()
if now - reigning_since(KEYS[3], server, now) < CALM then return 'WAIT' end
local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[2] then return 'TAKEN' end
redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], 'NX', digits(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', digits(now - DAY))
return 'DEAD'
