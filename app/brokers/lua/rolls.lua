-- The whole of many small rooms.
-- KEYS users of each room
-- ARGV 1 members of a room at most: of a larger one only their number is told, 2 members in all after which no more
--      rooms are read
-- Returns {number of members, member, clients, info, ...} for each room that was read, in order

local server, refusal = reign()
if not server then return refusal end
local rolls, read = {}, 0
for index, users in ipairs(KEYS) do
  if read > tonumber(ARGV[2]) then break end
  local count = redis.call('HLEN', users)
  local roll = {count}
  if count <= tonumber(ARGV[1]) then
    read = read + count
    local all = redis.call('HGETALL', users)
    for at = 1, #all, 2 do
      local clients, info = read_user(all[at + 1])
      roll[#roll + 1], roll[#roll + 2], roll[#roll + 3] = all[at], clients, info
    end
  end
  rolls[index] = roll
end
return rolls
