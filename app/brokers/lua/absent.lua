-- Which clients of one worker are not in their rooms as they should be. Rooms that were asked for live on.
-- KEYS members and users of each client's room in turn
-- ARGV 1 incarnation, 2 ttl ms of a room, then for each: client, member, info
-- Returns the numbers of those who are not, from 1

local server, refusal = reign()
if not server then return refusal end
local absent = {}
for index = 1, #KEYS / 2 do
  local members, users, at = KEYS[2 * index - 1], KEYS[2 * index], 3 * index
  local record = write_client(ARGV[1], ARGV[at + 1], ARGV[at + 2])
  if redis.call('HGET', members, ARGV[at]) ~= record or redis.call('HEXISTS', users, ARGV[at + 1]) == 0 then
    absent[#absent + 1] = index
  else
    keep_room(members, users, ARGV[2])
  end
end
return absent
