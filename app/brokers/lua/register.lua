-- Note in which rooms an incarnation has members, so that a reaper finds them; or that it has none there any more.
-- KEYS 1 set of rooms
-- ARGV 1 SADD or SREM, 2 ttl ms (renewed by each beat), then the rooms

local server, refusal = reign()
if not server then return refusal end
redis.call(ARGV[1], KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
