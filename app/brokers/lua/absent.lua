-- Which clients of one worker are not in their rooms as they should be, and which of its clients are in these rooms that
-- were not asked for; these only in rooms that are small, and until enough was looked at. Rooms that were asked for live
-- on.
-- KEYS members and users of each client's room in turn
-- ARGV 1 incarnation, 2 ttl ms of a room, then for each: client, member, info
-- Returns {numbers of those who are not, from 1}, {number of one of the room, client, number, client, ...}

local SMALL = 100    -- clients of a room that is looked through
local ENOUGH = 4000  -- clients looked at in one call

local server, refusal = reign()
if not server then return refusal end
local absent, strangers, asked, looked, seen = {}, {}, {}, 0, {}
for index = 1, #KEYS / 2 do
  asked[KEYS[2 * index - 1]] = asked[KEYS[2 * index - 1]] or {}
  asked[KEYS[2 * index - 1]][ARGV[3 * index]] = true
end
for index = 1, #KEYS / 2 do
  local members, users, at = KEYS[2 * index - 1], KEYS[2 * index], 3 * index
  local record = write_client(ARGV[1], ARGV[at + 1], ARGV[at + 2])
  if redis.call('HGET', members, ARGV[at]) ~= record or redis.call('HEXISTS', users, ARGV[at + 1]) == 0 then
    absent[#absent + 1] = index
  else
    keep_room(members, users, ARGV[2])
  end
  if not seen[members] and looked < ENOUGH then
    seen[members] = true
    if redis.call('HLEN', members) <= SMALL then
      local all = redis.call('HGETALL', members)
      looked = looked + #all / 2
      for of = 1, #all, 2 do
        if not asked[members][all[of]] and read_client(all[of + 1]) == ARGV[1] then
          strangers[#strangers + 1], strangers[#strangers + 2] = index, all[of]
        end
      end
    end
  end
end
return {absent, strangers}
