-- Clients of one worker join and leave a room. Who has joined already is not touched, unless one hash lacks it; who is
-- another worker's, or of another incarnation, cannot be made to leave. Joins go first: a member that only moves from one client to another
-- stays, and the first write is one that Redis may refuse.
-- KEYS 1 members, 2 users
-- ARGV 1 Pub/Sub channel, 2 incarnation, 3 ttl ms of the room, 4 number of joins, for each: client, member, info;
--      then the clients that leave
-- Returns the number of members.

local server, refusal = reign()
if not server then return refusal end
local members, users, incarnation, leaves = KEYS[1], KEYS[2], ARGV[2], 5 + 3 * tonumber(ARGV[4])
mend(members, users)
local roll = open_roll(users)
for at = 5, leaves - 1, 3 do
  local client, member, info = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local record, stored = write_client(incarnation, member, info), redis.call('HGET', members, client)
  local _, before, known = read_client(stored)
  if stored ~= record then redis.call('HSET', members, client, record) end
  if before ~= member then
    if before then change(roll, before, -1) end
    change(roll, member, 1, info)
  elseif redis.call('HEXISTS', users, member) == 0 then
    change(roll, member, 1, info)
  elseif known ~= info then
    change(roll, member, 0, info)
  end
end
for at = leaves, #ARGV do
  local owner, member = read_client(redis.call('HGET', members, ARGV[at]))
  if owner == incarnation then
    redis.call('HDEL', members, ARGV[at])
    change(roll, member, -1)
  end
end
local count = close_roll(roll, ARGV[1], '{}')
keep_room(members, users, ARGV[3])
return count
