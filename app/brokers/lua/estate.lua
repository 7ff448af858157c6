-- The rooms that a dead incarnation has left, some at a time. When none is left it is forgotten.
-- KEYS 1 set of rooms, 2 zset of incarnations
-- ARGV 1 incarnation, 2 rooms at most, then the rooms that are done
-- Returns rooms to do

local server, refusal = reign()
if not server then return refusal end
if #ARGV > 2 then redis.call('SREM', KEYS[1], unpack(ARGV, 3)) end
local rooms = redis.call('SRANDMEMBER', KEYS[1], ARGV[2])
if #rooms == 0 then redis.call('ZREM', KEYS[2], ARGV[1]) end
return rooms
